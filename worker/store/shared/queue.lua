-- arq's queues, and the lists that wake waiting processes.

-- Remove a job that has ended from its node's queue.
local function forget_queued(job_id, job)
  redis.call('ZREM', 'arq:queue:' .. job.node, job_id)
  redis.call('DEL', 'arq:job:' .. job_id)
end

-- Wake the process that waits on the list `key`, which has at most one entry.
local function wake(key)
  if redis.call('LLEN', key) == 0 and redis.call('LPUSH', key, '1') == 0 then -- it has another type of data
    redis.call('DEL', key)
    redis.call('LPUSH', key, '1')
  end
end
