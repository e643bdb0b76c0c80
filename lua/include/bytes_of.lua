-- The four bytes of h: the smallest prefix of all ids whose head is h. The reverse of head_of.
local function bytes_of(h)
  local low = h % 65536
  local high = (h - low) / 65536
  return string.char(math.floor(high / 256), high % 256, math.floor(low / 256), low % 256)
end
