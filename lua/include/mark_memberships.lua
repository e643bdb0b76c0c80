-- Note of profiles ids[1..] that they entered or left a static group, and of some of them (`known`)
-- that they became known by that, or unknown: as far as `named` (see `named_of`) has it. Gives
-- whether anything was noted.
--- @include "include/mark_unsettled"
local function mark_memberships(tag, group, ids, known, named, now)
  local name, fact = '\0' .. group, '\0' .. '0'
  if not named[fact] then known = {} end
  if not named[name] then
    mark_unsettled(tag, known, {fact}, now)
    return #known > 0
  end
  local are_known, others = {}, {}
  for i = 1, #known do are_known[known[i]] = true end
  for i = 1, #ids do
    if not are_known[ids[i]] then others[#others + 1] = ids[i] end
  end
  mark_unsettled(tag, known, {name, fact}, now)
  mark_unsettled(tag, others, {name}, now)
  return #ids > 0
end
