-- include: records, show, conclude, idempotency
-- End a job that no node has begun. ARGV[1]: JSON {account, id, result as `conclude` takes it, idempotency{...}}.
-- Answers {'admitted', job as it is shown} or {'refused', code, state}.
local ask = cjson.decode(ARGV[1])

local function cancel()
  local job = read('job:' .. ask.id)
  if not job or job.account ~= ask.account then return {'refused', 'job_not_found'} end
  -- a delete has been done for the customer: what is left of it is the node's own work
  if job.state ~= 'queued' or job.kind == 'delete' then return {'refused', 'job_not_cancellable', job.state} end
  conclude(ask.id, job, ask.result)
  redis.call('ZREM', ask.queue .. job.node, ask.id)
  redis.call('DEL', 'arq:job:' .. ask.id)
  return {'admitted', show_job(ask.id)}
end

return replay(ask) or remember(ask, cancel())
