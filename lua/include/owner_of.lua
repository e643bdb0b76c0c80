-- The mixed id that a bucket's value names as the owner of an identity: `<id><since>`. Nil where it
-- holds nothing, or only a reservation: `<id>r<attempt>`.
local function owner_of(held)
  if not held or string.sub(held, 17, 17) == 'r' then return nil end
  return string.sub(held, 1, 16)
end
