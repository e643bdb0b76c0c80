-- Is a group number in all of the indexes KEYS[first..last], but for KEYS[except]?
local function in_indexes(number, first, last, except)
  for i = first, last do
    if i ~= except and not redis.call('ZSCORE', KEYS[i], number) then return false end
  end
  return true
end
