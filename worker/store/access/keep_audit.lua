-- Move the oldest entries of the list `audit:new` to the audit log.
-- Also when full.
-- ask: {head, newest: number in `audit:head` ('': none) and ID of the log's last entry when `entries` was made,
-- entries: {{at_ms, fields: {field, value, ...}, lists: keys}, ...}, seq, chain: of the last of them, most:
-- entries to keep, now_ms: by the keeper's clock, kept_ms: how long entries are kept, false: forever}
-- Answers 1, or 0 if another keeper has moved them.
local ask = cjson.decode(ARGV[1])
local LISTED = 2000 -- the latest entries that are kept in the list of an object
local first_listed, lists = nil, {} -- lists: {time, ID, ...} of the new entries, by key

local function list(id, ms, keys)
  for _, key in ipairs(keys) do
    lists[key] = lists[key] or {}
    local new = lists[key]
    new[#new + 1], new[#new + 2] = ms, id
  end
  first_listed = first_listed or id
end

-- Add the entries to their lists. If the Redis account is of an earlier version and may not do that, there are no
-- lists.
local function write_lists()
  for key, new in pairs(lists) do
    if not pcall(redis.call, 'ZADD', key, unpack(new)) then first_listed = nil; return end
    redis.call('ZREMRANGEBYRANK', key, 0, -LISTED - 1)
    if ask.kept_ms then redis.call('PEXPIRE', key, ask.kept_ms) end
  end
end

local head = redis.call('HGET', 'audit:head', 'seq') or ''
if not string.find(head, '^%d+$') or #head > 15 then head = '' end
local newest = redis.call('XREVRANGE', 'audit', '+', '-', 'COUNT', 1)[1]
if head ~= ask.head or (newest and newest[1] or '') ~= ask.newest then return 0 end
local last_ms = newest and tonumber(string.match(newest[1], '^%d+')) or 0
for _, entry in ipairs(ask.entries) do
  -- never back and never ahead, so that a front end's clock cannot keep later entries out
  last_ms = math.max(last_ms, math.min(tonumber(entry.at_ms), ask.now_ms))
  local id = redis.call('XADD', 'audit', string.format('%.0f-*', last_ms), unpack(entry.fields))
  if id then list(id, string.format('%.0f', last_ms), entry.lists or {}) end
end
write_lists()
-- From this entry on, all entries are in their lists. After a keeper of an earlier version has moved entries, it starts
-- again.
local listed_to = redis.call('HGET', 'audit:head', 'listed_seq')
if first_listed and listed_to ~= head then redis.call('HSET', 'audit:head', 'listed_from', first_listed) end
if first_listed then redis.call('HSET', 'audit:head', 'listed_seq', ask.seq) end
redis.call('LTRIM', 'audit:new', #ask.entries, -1)
redis.call('HSET', 'audit:head', 'seq', ask.seq, 'chain', ask.chain)
redis.call('XTRIM', 'audit', 'MAXLEN', '~', ask.most)
-- By the time of the newest entry, which is never ahead of the keeper's clock: a clock that is ahead must not remove
-- anything.
if ask.kept_ms and last_ms > ask.kept_ms then
  redis.call('XTRIM', 'audit', 'MINID', '~', string.format('%.0f', last_ms - ask.kept_ms))
end
-- If anyone else cuts the log, it begins later than this says.
local first = redis.call('XRANGE', 'audit', '-', '+', 'COUNT', 1)[1]
local known = redis.call('HGET', 'audit:head', 'first')
for i = 1, first and #first[2] or 0, 2 do
  if first[2][i] == 'seq' and first[2][i + 1] ~= known then
    redis.call('HSET', 'audit:head', 'first', first[2][i + 1])
  end
end
return 1
