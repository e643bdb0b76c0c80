-- The key of the bucket in which an instance stands, of those of its definition: the leading ten
-- bits of its id say which.
local function index_key(tag, number, iid)
  local a, b = string.byte(iid, 1, 2)
  return tag .. ':index:' .. number .. ':' .. math.floor((a * 256 + b) / 64)
end
