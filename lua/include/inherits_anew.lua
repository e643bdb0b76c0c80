-- Does a profile inherit something else by the definition of a number, since one of its instances
-- (`key` holds them all) told it what is `told` in place of what was `held`? A version that rose
-- alone decides nothing but which of two instances is shown.
local function inherits_anew(key, number, held, told)
  local match = string.match
  local was_by, was = match(held, '^%d+ %d+ (%d+) (.*)$')
  local is_by, is = match(told, '^%d+ %d+ (%d+) (.*)$')
  if was ~= is then return true end
  if is == '' then return false end
  if was_by ~= is_by then return true end
  local values = redis.call('HVALS', key)
  local many = 0
  for i = 1, #values do
    local of, from = match(values[i], '^(%d+) %d+ %d+ ()')
    if of == number and from <= #values[i] then many = many + 1 end
  end
  return many > 1
end
