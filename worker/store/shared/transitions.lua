-- include: states, job_lists
-- State transitions of jobs. Nothing else changes a job's state.

-- Change a job's state. If the table forbids it, raise an error and write nothing.
local function become(job_id, job, state)
  if not MAY_FOLLOW[job.state][state] then
    return error('job ' .. job_id .. ': ' .. state .. ' may not follow ' .. job.state)
  end
  local always, before = job_lists(job_id, job)
  for _, key in ipairs(before) do redis.call('ZREM', key, job_id) end
  trim(before)
  job.state = state
  redis.call('HSET', 'job:' .. job_id, 'state', state)
  local _, lists = job_lists(job_id, job)
  put_into(lists, job_id, job)
  if has_ended(job) then
    trim(always)
    trim(lists)
  end
end
