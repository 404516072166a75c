-- include: states, job_lists, off, claims
-- A node's reports of a job, for operators only.

local STEPS_KEPT_MS, LOG_KEPT_MS = JOBS_LISTED_MS, 7 * 86400 * 1000
local MOST, LOG_BYTES = 200, 32768
local EVENT_BYTES, STEP_BYTES = 200, 80 -- of what a report adds to the streams of events, and of a step in its list
local LATEST_MS = 2 ^ 47 -- in the year 6429

-- Whether the value is a number between the two.
local function is_between(given, least, most)
  return type(given) == 'number' and given >= least and given <= most
end

local function is_step(kind, step)
  return (step.step == '' or STEPS_OF[kind][step.step]) and is_between(step.ms, 0, LATEST_MS)
    and is_between(step.attempt, 0, 1000000)
end

-- The latest items of a list, so that a report does not cost more than what is kept.
local function latest(list)
  return {unpack(list, math.max(1, #list - MOST + 1))}
end

local function bytes_of(texts)
  local bytes = 0
  for _, text in pairs(texts) do bytes = bytes + #text end
  return bytes
end

-- Add items to a list that keeps the latest ones.
local function push(key, items, kept_ms)
  if #items == 0 then return end
  if redis.call('RPUSH', key, unpack(items)) > MOST then redis.call('LTRIM', key, -MOST, -1) end
  redis.call('PEXPIRE', key, kept_ms)
end

-- Store the starts of steps and the log lines, which are reported with a step or with the job's end. job.step becomes
-- the last one that has begun. Answers false if they are not stored, because the node has added too much.
-- report: {steps: [{step ('': the end), ms, attempt}], log: [line], resumed: how often a process has resumed it}.
local function keep_report(job_id, job, report)
  local steps, lines = 'job:' .. job_id .. ':steps', 'job:' .. job_id .. ':log'
  local log = latest(report.log)
  local has_room = may_add(job.node, EVENT_BYTES + STEP_BYTES * math.min(#report.steps, MOST) + bytes_of(log))
  local begun = {}
  for _, step in ipairs(latest(report.steps)) do
    if is_step(job.kind, step) then
      begun[#begun + 1] = cjson.encode({step = step.step, ms = step.ms, attempt = step.attempt})
      if step.step ~= '' then job.step = step.step end
      if step.step == 'stopping' then note_off(job_id, job, step.ms) end
    end
  end
  if has_room then
    push(steps, begun, STEPS_KEPT_MS)
    push(lines, log, LOG_KEPT_MS)
  end
  if is_between(report.resumed, 1, 1000) then
    redis.call('HINCRBY', 'job:' .. job_id, 'attempts', math.floor(report.resumed))
  end
  if has_room and #log > 0 then
    local bytes = bytes_of(redis.call('LRANGE', lines, 0, -1))
    while bytes > LOG_BYTES do bytes = bytes - #redis.call('LPOP', lines) end
  end
  return has_room
end
