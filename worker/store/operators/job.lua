-- include: records, show, retrying
-- One job with its steps and log.
-- Only reads.
-- ask: {job, rule (see `refuse_retry`)}
-- Answers {job (see `show_job`), {step as JSON, ...}, {log line, ...}, its server's power now or '', {'refused', code,
-- ...}: why it is not retried, or {}}; nil if there is no such job.
local ask = cjson.decode(ARGV[1])
local key = 'job:' .. ask.job
local job = read(key)
if not job then return nil end
return {show_job(ask.job), redis.call('LRANGE', key .. ':steps', 0, -1), redis.call('LRANGE', key .. ':log', 0, -1),
  redis.call('HGET', 'server:' .. job.server, 'power') or '', refuse_retry(job, ask.rule) or {}}
