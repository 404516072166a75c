-- include: clock
-- The cell in numbers. Answers {now_ms, jobs that wait, jobs in progress, moment of the oldest waiting one or '', servers,
-- stranded servers, servers with findings, webhooks whose turn it is}.
local now = now_ms()
return {
  now, redis.call('ZCARD', 'jobs:state:queued'), redis.call('ZCARD', 'jobs:state:in_progress'),
  redis.call('ZRANGE', 'jobs:state:queued', 0, 0, 'WITHSCORES')[2] or '', redis.call('ZCARD', 'servers'),
  redis.call('ZCARD', 'servers:stranded'), redis.call('ZCARD', 'findings'),
  redis.call('ZCOUNT', 'webhooks:due', '-inf', now),
}
