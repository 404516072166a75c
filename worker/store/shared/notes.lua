-- What a script that reads writes beside, and can do without: a counter, the trimming of a list.

-- Call `act`, which writes, with the arguments. Answers why Redis refused it, '' if it did not, and then what `act`
-- answered.
local function try(act, ...)
  local answer = {pcall(act, ...)}
  if answer[1] then return '', unpack(answer, 2) end
  return why_refused(answer[2]) or error(answer[2], 0)
end
