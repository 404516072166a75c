-- Errors with which Redis refuses to write.

local WRITES_REFUSED = {'OOM', 'READONLY', 'MISCONF', 'NOREPLICAS'} -- how Redis begins its refusal of a write

-- What pcall has caught, as text. From Redis 7 on, pcall makes a text of an error that is a table.
local function text_of(caught)
  return type(caught) == 'table' and caught.err or tostring(caught)
end

-- Why Redis has refused a write, one of these; nil for any other error.
local function why_refused(caught)
  for _, why in ipairs(WRITES_REFUSED) do
    if string.find(text_of(caught), '^%-?' .. why .. ' ') then return why end
  end
end
