-- Optional writes of read-only scripts: a counter, the trimming of a list.

-- the first words of Redis's errors for refused writes
local WRITES_REFUSED = {'OOM', 'READONLY', 'MISCONF', 'NOREPLICAS'}

-- Call `act`, which writes, with the arguments. Returns why Redis refused the write or '', and the result of `act`.
local function try(act, ...)
  local answer = {pcall(act, ...)}
  if answer[1] then return '', unpack(answer, 2) end
  local text = type(answer[2]) == 'table' and answer[2].err or answer[2]
  for _, why in ipairs(WRITES_REFUSED) do
    if string.find(text, '^%-?' .. why .. ' ') then return why end
  end
  error(answer[2], 0)
end
