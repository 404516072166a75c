-- include: records, show, notes
-- One page of an account's jobs, newest first.
-- Only reads and notes.
-- ask: {account, server, state, since_ms, until_ms, offset, limit}: since_ms (inclusive) and until_ms (exclusive) are
-- bounds of the admission; all but account, offset and limit may be missing
-- Answers {total, {'<node> <kind>', {durations (see `durations_of`)}, ...}, {server, {power, kind (see
-- `state_of_server`)}, ...}, {id, {field, value, ...}}, ...}: what jobs have in common is sent once.
local ask = cjson.decode(ARGV[1])
local GONE_AT_ONCE = 500 -- per call, to limit how long it blocks Redis
local list = 'account:' .. ask.account .. ':jobs'
if ask.server then list = list .. ':server:' .. ask.server end
if ask.state then list = list .. ':' .. ask.state end
-- The record of a job expires 30 days after its end; its entry in the list is removed here.
for _ = 1, GONE_AT_ONCE do
  local oldest = redis.call('ZRANGE', list, 0, 0)[1]
  if not oldest or redis.call('EXISTS', 'job:' .. oldest) == 1 then break end
  if try(redis.call, 'ZREM', list, oldest) ~= '' then break end
end
local first, last = ask.since_ms or '-inf', ask.until_ms and '(' .. ask.until_ms or '+inf'
local count = redis.call('ZCOUNT', list, first, last)
local rank = ask.offset + (ask.until_ms and redis.call('ZCOUNT', list, ask.until_ms, '+inf') or 0)
local many = math.min(ask.limit, count - ask.offset)
local durations, servers, seen = {}, {}, {}
local page = {count, durations, servers}

local function add_once(list_of, key, value_of, ...)
  if seen[key] then return end
  local value = value_of(...)
  seen[key] = true
  list_of[#list_of + 1], list_of[#list_of + 2] = key, value
end

local function show(id)
  -- checks the account too, so that a wrong list never shows another account's data
  local job, flat = read_of(ask.account, 'job:' .. id)
  if not job or job.server ~= (ask.server or job.server) or job.state ~= (ask.state or job.state) then return end
  add_once(durations, job.node .. ' ' .. job.kind, durations_of, job)
  add_once(servers, job.server, state_of_server, job.server, job.account)
  page[#page + 1] = {id, flat}
end

for _, id in ipairs(many > 0 and redis.call('ZREVRANGE', list, rank, rank + many - 1) or {}) do
  attempt('job:' .. id, show, id)
end
return page
