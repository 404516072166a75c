-- include: refusals
-- Optional writes of read-only scripts: a counter, the trimming of a list.

-- Call `act`, which writes, with the arguments. Returns why Redis refused the write or '', and the result of `act`.
local function try(act, ...)
  local answer = {pcall(act, ...)}
  if answer[1] then return '', unpack(answer, 2) end
  return why_refused(answer[2]) or error(answer[2], 0)
end
