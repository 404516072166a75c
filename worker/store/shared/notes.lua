-- What a script that reads writes beside, and can do without: a counter, the trimming of a list.

local WRITES_REFUSED = {'OOM', 'READONLY', 'MISCONF', 'NOREPLICAS'} -- how Redis begins its refusal of a write

-- Call `act`, which writes, with the arguments. Answers why Redis refused it, '' if it did not, and then what `act`
-- answered.
local function try(act, ...)
  local answer = {pcall(act, ...)}
  if answer[1] then return '', unpack(answer, 2) end
  local text = type(answer[2]) == 'table' and answer[2].err or answer[2]
  for _, why in ipairs(WRITES_REFUSED) do
    if string.find(text, '^%-?' .. why .. ' ') then return why end
  end
  error(answer[2], 0)
end
