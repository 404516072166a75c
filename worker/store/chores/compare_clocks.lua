-- include: clock, records
-- Compare the time of the cell with the clocks of a process. If Redis's clock is ahead and the process knows that
-- this much time has passed during an outage, the time of the cell leaps. If the process's wall clock agrees with
-- Redis's, the two times approach each other by a tenth of the elapsed time.
-- Also when full.
-- ask: {wall_ms: the process's wall clock, counted_ms: the time of the cell as the process has measured it since its
-- last comparison, '' at its first, unsure_ms: its uncertainty, agree_ms: how far apart agreeing clocks may be,
-- each_ms: how often the times approach each other and are written to the disk}
-- Answers {the time of the cell, by how much it is ahead of Redis's clock (negative: behind), by how much it leapt}.
local ask = cjson.decode(ARGV[1])
local now = now_ms()
local ahead, noted, step = unpack(redis.call('HMGET', 'clock', 'ahead_ms', 'noted_ms', 'step'))
ahead = number(ahead) or 0
local shown = now - ahead
local agree = math.abs(ask.wall_ms - shown) < ask.agree_ms

-- How far the time leaps, never past Redis's clock.
local function missed()
  if ahead >= 0 then return 0 end
  if ask.counted_ms ~= '' then
    local passed = ask.counted_ms - now
    return passed > ask.unsure_ms and math.min(passed, -ahead) or 0
  end
  -- no process has measured, because the whole cell was down: two agreeing clocks must be enough
  return step ~= '1' and agree and -ahead or 0
end

local leapt = missed()
if leapt > 0 then
  ahead = ahead + leapt
  redis.call('HSET', 'clock', 'ahead_ms', ahead, 'leapt_ms', now + leapt)
elseif ask.counted_ms ~= '' and ahead ~= 0 and step ~= '1' then
  redis.call('HSET', 'clock', 'step', '1') -- a process has measured that the time has not passed
end
if math.abs(shown - (number(noted) or 0)) >= ask.each_ms then
  local nearer = agree and math.min(math.abs(ahead), ask.each_ms / 10) or 0
  ahead = ahead + (ahead < 0 and nearer or -nearer)
  redis.call('HSET', 'clock', 'shown_ms', shown, 'noted_ms', shown, 'ahead_ms', ahead)
end
return {shown + ahead, ahead, leapt}
