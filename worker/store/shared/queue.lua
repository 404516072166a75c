-- arq's queues.

-- Take a job that was ended out of its node's queue.
local function forget_queued(job_id, job)
  redis.call('ZREM', 'arq:queue:' .. job.node, job_id)
  redis.call('DEL', 'arq:job:' .. job_id)
end
