-- Of fields and values of a profile's memberships, alternating, those of static groups: what a
-- dynamic group holds follows from facts, and is none.
local function static_fields(tag, fields)
  local groups, static = {}, {}
  for i = 1, #fields, 2 do groups[#groups + 1] = fields[i] end
  for i = 1, #groups, 2000 do
    local last = math.min(i + 1999, #groups)
    local derived = redis.call('SMISMEMBER', tag .. ':dynamic', unpack(groups, i, last))
    for j = 1, #derived do
      local at = 2 * (i + j) - 3
      if derived[j] == 0 and fields[at] ~= 'd' then
        static[#static + 1] = fields[at]
        static[#static + 1] = fields[at + 1]
      end
    end
  end
  return static
end
