-- include: records, show
-- All that is known of a job. ARGV: job id. Answers nil where there is none; else {job as it is shown, {step as JSON, ...},
-- {log line, ...}, its server's power now or ''}.
local job = read('job:' .. ARGV[1])
if not job then return nil end
local key = 'job:' .. ARGV[1]
return {show_job(ARGV[1]), redis.call('LRANGE', key .. ':steps', 0, -1), redis.call('LRANGE', key .. ':log', 0, -1),
  redis.call('HGET', 'server:' .. job.server, 'power') or ''}
