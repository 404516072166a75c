-- arq's queues, and the lists that wake who waits.

-- Take a job that is over out of its node's queue.
local function forget_queued(job_id, job)
  redis.call('ZREM', 'arq:queue:' .. job.node, job_id)
  redis.call('DEL', 'arq:job:' .. job_id)
end

-- Wake who waits for the list `key`; it holds one entry at most.
local function wake(key)
  redis.call('LPUSH', key, '1')
  redis.call('LTRIM', key, 0, 0)
end
