-- IDs of snapshots: integers in canonical form, small enough for a double to represent exactly.

local function is_id(text)
  return type(text) == 'string' and #text <= 15 and string.find(text, '^[1-9]%d*$') ~= nil
end
