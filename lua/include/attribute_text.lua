-- The text that the stored JSON value of an attribute is shown as, itself as a JSON string: a text
-- is its own, null is shown as '', a number, a truth value or a list as its JSON.
local function attribute_text(value)
  if string.byte(value) == 34 then return value end
  if value == 'null' then return '""' end
  return '"' .. string.gsub(value, '["\\]', '\\%0') .. '"'
end
