-- The hash tag of a key, braces included: what every computed key begins with.
local function tag_of(key)
  return string.match(key, '^{[^}]*}')
end
