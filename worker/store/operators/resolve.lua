-- include: clock, records, idempotency, off
-- Mark a stranded job as resolved. A server that a later job has also stranded stays stranded.
-- ask: {job, by, reason, idempotency (see `replay`)}
-- Answers {'admitted'} or {'refused', code}.
local ask = cjson.decode(ARGV[1])

local function resolve()
  local key = 'job:' .. ask.job
  local job = read(key)
  if not job then return {'refused', 'job_not_found'} end
  if job.stranded ~= '1' or job.resolved_ms then return {'refused', 'job_not_stranded'} end
  redis.call('HSET', key, 'resolved_ms', now_ms(), 'resolved_by', ask.by, 'resolved_reason', ask.reason)
  redis.call('HDEL', key, 'off_ms')
  if redis.call('HGET', 'server:' .. job.server, 'stranded') == ask.job then
    back_on(job.server, {stranded = ask.job})
    redis.call('HDEL', 'server:' .. job.server, 'stranded', 'taken_by', 'taken_ms')
    redis.call('ZREM', 'servers:stranded', job.server)
  end
  return {'admitted'}
end

return replay(ask) or remember(ask, resolve())
