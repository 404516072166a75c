-- include: job_lists
-- What a node reports of a job for operators only.

local STEPS_KEPT_MS, LOG_KEPT_MS = JOBS_LISTED_MS, 7 * 86400 * 1000
local MOST, LOG_BYTES = 200, 32768

-- Store the starts of steps and the log lines, which are reported with a step or with the job's end.
-- report: {steps: [{step ('': the end), ms, attempt}], log: [line], resumed: times that a process has resumed it}.
local function keep_report(job_id, report)
  local steps, lines = 'job:' .. job_id .. ':steps', 'job:' .. job_id .. ':log'
  for _, step in ipairs(report.steps) do redis.call('RPUSH', steps, cjson.encode(step)) end
  for _, line in ipairs(report.log) do redis.call('RPUSH', lines, line) end
  if report.resumed > 0 then redis.call('HINCRBY', 'job:' .. job_id, 'attempts', report.resumed) end
  redis.call('LTRIM', steps, -MOST, -1)
  redis.call('LTRIM', lines, -MOST, -1)
  local bytes = 0
  for _, line in ipairs(redis.call('LRANGE', lines, 0, -1)) do bytes = bytes + #line end
  while bytes > LOG_BYTES do bytes = bytes - #redis.call('LPOP', lines) end
  redis.call('PEXPIRE', steps, STEPS_KEPT_MS)
  redis.call('PEXPIRE', lines, LOG_KEPT_MS)
end
