-- include: clock
-- Leave a job that has not ended to a later run.
-- ask: {queue, job, mark: key of arq's mark that it is in progress, put_off_ms: how much later, 0: it keeps its place}
-- Answers 0 or 1, without a meaning.
local ask = cjson.decode(ARGV[1])
if ask.put_off_ms > 0 then redis.call('ZADD', ask.queue, 'XX', now_ms() + ask.put_off_ms, ask.job) end
return redis.call('DEL', ask.mark)
