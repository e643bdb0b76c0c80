-- Those of `names` that rules name, as a set, nil where there are none; and as a list. An attribute
-- is called as it is stored, a static group '\0' and its number, group 0 as having any fact at all,
-- and what a definition shares '\0:' and its number.
local function named_of(tag, names)
  local named, listed = nil, {}
  for i = 1, #names, 2000 do
    local last = math.min(i + 1999, #names)
    local found = redis.call('SMISMEMBER', tag .. ':named', unpack(names, i, last))
    for j = 1, #found do
      if found[j] == 1 then
        named = named or {}
        named[names[i + j - 1]] = true
        listed[#listed + 1] = names[i + j - 1]
      end
    end
  end
  return named, listed
end
