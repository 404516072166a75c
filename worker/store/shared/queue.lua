-- The nodes' queues, and the lists that wake waiting processes.

-- The jobs of a node that have not ended.
local function queue_of(node)
  return 'arq:queue:' .. node
end

-- Remove a job that has ended from its node's queue.
local function forget_queued(job_id, job)
  redis.call('ZREM', queue_of(job.node), job_id)
end

-- Wake the process that waits on the list `key`, which has at most one entry.
local function wake(key)
  if redis.call('LLEN', key) == 0 and redis.call('LPUSH', key, '1') == 0 then -- it has another type of data
    redis.call('DEL', key)
    redis.call('LPUSH', key, '1')
  end
end
