-- include: records, show, notes
-- One page of an account's jobs, newest first.
-- Only reads and notes.
-- ask: {account, server, state, offset, limit}; server and state may be missing
-- Answers {total, job (see `show_job`), ...}.
local ask = cjson.decode(ARGV[1])
local GONE_AT_ONCE = 500 -- per call, to bound how long it blocks Redis
local list = 'account:' .. ask.account .. ':jobs'
if ask.server then list = list .. ':server:' .. ask.server end
if ask.state then list = list .. ':' .. ask.state end
-- The record of a job expires 30 days after its end; its entry in the list is removed here.
for _, id in ipairs(redis.call('ZRANGE', list, 0, GONE_AT_ONCE - 1)) do
  if redis.call('EXISTS', 'job:' .. id) == 1 then break end
  if try(redis.call, 'ZREM', list, id) ~= '' then break end
end
local page = {redis.call('ZCARD', list)}
for _, id in ipairs(redis.call('ZREVRANGE', list, ask.offset, ask.offset + ask.limit - 1)) do
  local key = 'job:' .. id
  local account, server, state = unpack(redis.call('HMGET', key, 'account', 'server', 'state'))
  local is_wanted = server == (ask.server or server) and state == (ask.state or state)
  -- also the account: a list that is wrong shows nobody's data to another
  if account == ask.account and is_wanted then page[#page + 1] = attempt(key, show_job, id) end
end
return page
