-- include: records, show
-- One job with its steps and log.
-- Only reads.
-- ask: {job}
-- Answers {job (see `show_job`), {step as JSON, ...}, {log line, ...}, its server's power now or ''}; nil if there is
-- no such job.
local ask = cjson.decode(ARGV[1])
local key = 'job:' .. ask.job
local job = read(key)
if not job then return nil end
return {show_job(ask.job), redis.call('LRANGE', key .. ':steps', 0, -1), redis.call('LRANGE', key .. ':log', 0, -1),
  redis.call('HGET', 'server:' .. job.server, 'power') or ''}
