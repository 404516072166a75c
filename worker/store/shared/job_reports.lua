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

-- Store the starts of steps and the log lines, which are reported with a step or with the job's end. job.step becomes
-- the last one that has begun. Answers false if they are not stored, because the node has added too much.
-- report: {steps: [{step ('': the end), ms, attempt}], log: [line], resumed: how often a process has resumed it}.
local function keep_report(job_id, job, report)
  local steps, lines = 'job:' .. job_id .. ':steps', 'job:' .. job_id .. ':log'
  local log = latest(report.log)
  local has_room = may_add(job.node, EVENT_BYTES + STEP_BYTES * math.min(#report.steps, MOST) + bytes_of(log))
  for _, step in ipairs(latest(report.steps)) do
    if is_step(job.kind, step) then
      if has_room then
        redis.call('RPUSH', steps, cjson.encode({step = step.step, ms = step.ms, attempt = step.attempt}))
      end
      if step.step ~= '' then job.step = step.step end
      if step.step == 'stopping' then note_off(job_id, job, step.ms) end
    end
  end
  for _, line in ipairs(has_room and log or {}) do redis.call('RPUSH', lines, line) end
  if is_between(report.resumed, 1, 1000) then
    redis.call('HINCRBY', 'job:' .. job_id, 'attempts', math.floor(report.resumed))
  end
  redis.call('LTRIM', steps, -MOST, -1)
  redis.call('LTRIM', lines, -MOST, -1)
  local bytes = bytes_of(redis.call('LRANGE', lines, 0, -1))
  while bytes > LOG_BYTES do bytes = bytes - #redis.call('LPOP', lines) end
  redis.call('PEXPIRE', steps, STEPS_KEPT_MS)
  redis.call('PEXPIRE', lines, LOG_KEPT_MS)
  return has_room
end
