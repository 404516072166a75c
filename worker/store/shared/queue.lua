-- arq's queues, and the lists that wake waiting processes.

-- Remove a job that has ended from its node's queue.
local function forget_queued(job_id, job)
  redis.call('ZREM', 'arq:queue:' .. job.node, job_id)
  redis.call('DEL', 'arq:job:' .. job_id)
end

-- Wake the process that waits on the list `key`, which has at most one entry.
local function wake(key)
  redis.call('LPUSH', key, '1')
  redis.call('LTRIM', key, 0, 0)
end
