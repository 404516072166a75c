-- include: records, show, conclude, idempotency
-- Cancel a job that its node has not started.
-- Also when full.
-- ask: {account, id, result (see `conclude`), idempotency (see `replay`)}
-- Answers {'admitted', job (see `show_job`)} or {'refused', code, ...}.
local ask = cjson.decode(ARGV[1])

local function cancel()
  local job = read_of(ask.account, 'job:' .. ask.id)
  if not job then return {'refused', 'job_not_found'} end
  -- a delete is already done for the customer: its job only frees the space
  if job.state ~= 'queued' or job.kind == 'delete' then return {'refused', 'job_not_cancellable', job.state} end
  conclude(ask.id, job, ask.result)
  return {'admitted', show_job(ask.id)}
end

return replay(ask) or remember(ask, cancel())
