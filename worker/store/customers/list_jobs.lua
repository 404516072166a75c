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
local function is_gone(id)
  return id and redis.call('EXISTS', 'job:' .. id) == 0
end
local any_gone = is_gone(redis.call('ZRANGE', list, 0, 0)[1])
for _, id in ipairs(any_gone and redis.call('ZRANGE', list, 0, GONE_AT_ONCE - 1) or {}) do
  if not is_gone(id) or try(redis.call, 'ZREM', list, id) ~= '' then break end
end
local first, last = ask.since_ms or '-inf', ask.until_ms and '(' .. ask.until_ms or '+inf'
local page = {redis.call('ZCOUNT', list, first, last)}
local rank = ask.offset + (ask.until_ms and redis.call('ZCOUNT', list, ask.until_ms, '+inf') or 0)
local many = math.min(ask.limit, page[1] - ask.offset)
local read_before = {}
local function show(id, key, flat, job)
  return show_job(id, readable(key, job), flat, read_before)
end
for _, id in ipairs(many > 0 and redis.call('ZREVRANGE', list, rank, rank + many - 1) or {}) do
  local key = 'job:' .. id
  local flat = redis.call('HGETALL', key)
  local job = named(flat)
  local is_wanted = job.server == (ask.server or job.server) and job.state == (ask.state or job.state)
  -- checks the account too, so that a wrong list never shows another account's data
  if job.account == ask.account and is_wanted then page[#page + 1] = attempt(key, show, id, key, flat, job) end
end
return page
