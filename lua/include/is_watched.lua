-- Does any definition name one of these attributes, so that what follows from it has to follow at
-- once? Without names: does any definition name anything? Where they name very many, '' stands for
-- all that there are.
local function is_watched(tag, names)
  local watch = tag .. ':watch'
  if redis.call('EXISTS', watch) == 0 then return false end
  if not names then return true end
  for i = 1, #names, 2000 do
    local found = redis.call('SMISMEMBER', watch, '', unpack(names, i, math.min(i + 1999, #names)))
    for j = 1, #found do
      if found[j] == 1 then return true end
    end
  end
  return false
end
