-- include: states, job_lists, records
-- State transitions of jobs. Nothing else changes a job's state.

-- Change a job's state, and with it other fields of its record, in `job`, too; `changes` gets the state. If the table
-- forbids it, raise an error and write nothing.
local function become(job_id, job, state, changes)
  if not MAY_FOLLOW[job.state][state] then
    return error('job ' .. job_id .. ': ' .. state .. ' may not follow ' .. job.state)
  end
  local always, before = job_lists(job_id, job)
  for _, key in ipairs(before) do redis.call('ZREM', key, job_id) end
  trim(before)
  if job.state == 'queued' then
    redis.call('ZREM', 'jobs:waiting', job_id)
    if job.start_by_ms then redis.call('ZREM', 'jobs:start_by', job_id) end
  end
  changes.state = state
  for field, text in pairs(changes) do job[field] = text end
  write('job:' .. job_id, changes)
  local _, lists = job_lists(job_id, job)
  put_into(lists, job_id, job)
  trim(always) -- also at the start: a list that is about to expire would take the running job with it
  if has_ended(job) then trim(lists) end
end
