-- include: records
-- The time of the cell: Unix time by Redis's clock, except that it takes no part in the clock's steps. It goes on from
-- where it was, whatever the clock is set to, until `chores/compare_clocks` brings the two together again.

local SILENT_MS = 10000 -- a live cell runs a script every few seconds: a longer gap is a step, or all was down
local NOTED_MS = 200 -- how often what Redis's clock showed is noted
local moment, leapt

-- The time, in milliseconds: the same for the whole of one script. A script whose writes are not persisted reads it
-- before it calls redis.set_repl.
local function now_ms()
  if moment then return moment end
  local time = redis.call('TIME')
  local shown = time[1] * 1000 + math.floor(time[2] / 1000)
  local last, ahead
  last, ahead, leapt = unpack(redis.call('HMGET', 'clock', 'shown_ms', 'ahead_ms', 'leapt_ms'))
  last = number(last)
  local passed = shown - (last or shown)
  ahead = number(ahead) or 0
  -- pcall: where Redis takes no writes, reads go on, by its clock as it is
  if passed < 0 or passed > SILENT_MS then
    local kept = redis.pcall('HSET', 'clock', 'shown_ms', shown, 'ahead_ms', ahead - passed, 'step', '')
    if type(kept) ~= 'table' then ahead = ahead - passed end
  elseif passed >= NOTED_MS or not last then
    redis.set_repl(redis.REPL_NONE) -- not worth a write to the disk
    redis.pcall('HSET', 'clock', 'shown_ms', shown)
    redis.set_repl(redis.REPL_ALL)
  end
  moment = shown + ahead
  return moment
end

-- When the clock last leapt over a time in which nobody could be heard; 0: never.
local function leapt_ms()
  now_ms()
  return number(leapt) or 0
end
