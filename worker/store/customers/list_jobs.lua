-- include: records, show, notes
-- One page of an account's jobs, newest first.
-- Only reads and notes.
-- ask: {account, server, state, since_ms, until_ms, offset, limit}: since_ms (inclusive) and until_ms (exclusive) are
-- bounds of the admission; all but account, offset and limit may be missing
-- Answers {total, job (see `show_job`), ...}.
local ask = cjson.decode(ARGV[1])
local GONE_AT_ONCE = 500 -- per call, to limit how long it blocks Redis
local list = 'account:' .. ask.account .. ':jobs'
if ask.server then list = list .. ':server:' .. ask.server end
if ask.state then list = list .. ':' .. ask.state end
-- The record of a job expires 30 days after its end; its entry in the list is removed here.
for _, id in ipairs(redis.call('ZRANGE', list, 0, GONE_AT_ONCE - 1)) do
  if redis.call('EXISTS', 'job:' .. id) == 1 then break end
  if try(redis.call, 'ZREM', list, id) ~= '' then break end
end
local first, last = ask.since_ms or '-inf', ask.until_ms and '(' .. ask.until_ms or '+inf'
local page = {redis.call('ZCOUNT', list, first, last)}
local rank = ask.offset + (ask.until_ms and redis.call('ZCOUNT', list, ask.until_ms, '+inf') or 0)
local many = math.min(ask.limit, page[1] - ask.offset)
for _, id in ipairs(many > 0 and redis.call('ZREVRANGE', list, rank, rank + many - 1) or {}) do
  local key = 'job:' .. id
  local account, server, state = unpack(redis.call('HMGET', key, 'account', 'server', 'state'))
  local is_wanted = server == (ask.server or server) and state == (ask.state or state)
  -- checks the account too, so that a wrong list never shows another account's data
  if account == ask.account and is_wanted then page[#page + 1] = attempt(key, show_job, id) end
end
return page
