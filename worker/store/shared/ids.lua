-- Ids of snapshots: whole numbers in one form, small enough that a double holds each exactly.

local function is_id(text)
  return type(text) == 'string' and #text <= 15 and string.find(text, '^[1-9]%d*$') ~= nil
end
