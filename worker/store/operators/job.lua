-- include: clock, records, nodes, pause, show, retrying
-- One job with its steps and log.
-- Only reads.
-- ask: {job, rule (see `refuse_retry`), silent_ms}
-- Answers {job (see `show_job` and `with_silence`), {step as JSON, ...}, {log line, ...}, its server's power now or '',
-- {'refused', code, ...} if it cannot be retried, or {}, why it waits if it is queued, or {}}; nil if there is no such
-- job.
-- Why it waits is {place in its node's queue, 1 for the first, jobs in that queue, jobs that its node runs, {field,
-- value, ...} of the node, 1 if the node is silent, when the wait for a silent node began, ID of another job that
-- holds the server or ''}.
local ask = cjson.decode(ARGV[1])
local key = 'job:' .. ask.job
local job = read(key)
if not job then return nil end

local function why_it_waits()
  if job.state ~= 'queued' then return {} end
  local node, queued = 'node:' .. job.node, 'jobs:node:' .. job.node .. ':queued'
  local holder = redis.call('HGET', 'server:' .. job.server, 'job')
  local waits_ms = math.max(number(job.queued_ms), number(redis.call('HGET', node, 'heartbeat_ms')) or 0, leapt_ms())
  return {(redis.call('ZRANK', queued, ask.job) or -1) + 1, redis.call('ZCARD', queued),
    redis.call('ZCARD', 'jobs:node:' .. job.node .. ':in_progress'), node_as_paused(job.node),
    node_is_silent(job.node, ask.silent_ms) and 1 or 0, waits_ms, holder and holder ~= ask.job and holder or ''}
end

return {with_silence(show_job(ask.job), ask.silent_ms), redis.call('LRANGE', key .. ':steps', 0, -1),
  redis.call('LRANGE', key .. ':log', 0, -1),
  redis.call('HGET', 'server:' .. job.server, 'power') or '', refuse_retry(job, ask.rule) or {}, why_it_waits()}
