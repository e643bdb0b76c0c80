-- h of a mixed id: its first four bytes as an unsigned integer. It decides the segment.
local function head_of(id)
  local a, b, c, d = string.byte(id, 1, 4)
  return ((a * 256 + b) * 256 + c) * 256 + d
end
