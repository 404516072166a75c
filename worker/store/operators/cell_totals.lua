-- include: clock
-- The cell in numbers.
-- ask: {}
-- Answers {now_ms, queued jobs, jobs in progress, queued_ms of the oldest queued one or '', servers, stranded servers,
-- servers with findings, webhooks with a delivery to make now, unreadable records}.
local now = now_ms()
return {
  now, redis.call('ZCARD', 'jobs:state:queued'), redis.call('ZCARD', 'jobs:state:in_progress'),
  redis.call('ZRANGE', 'jobs:state:queued', 0, 0, 'WITHSCORES')[2] or '', redis.call('ZCARD', 'servers'),
  redis.call('ZCARD', 'servers:stranded'), redis.call('ZCARD', 'findings'),
  redis.call('ZCOUNT', 'webhooks:due', '-inf', now), redis.call('ZCARD', 'unreadable'),
}
