-- include: records, show, walk
-- Find the matching snapshots of an account, oldest first. A call reads a part of the list, which can be long.
-- Only reads.
-- ask: {account, server, status, name, from_ms, before_ms, after (see `walk`)}; all but the account may be missing
-- Answers {after, {id, name, size_mb or -1}, ...}; after is {} at the end of the list.
local ask = cjson.decode(ARGV[1])
local index = snapshots_of(ask.account, ask.server)
if not index then return {{}} end
local older = ask.from_ms and redis.call('ZCOUNT', index, '-inf', '(' .. ask.from_ms) or 0
local rank = ask.after and first_rank(ask, index) or older
local part = redis.call('ZRANGE', index, rank, rank + LOOKS - 1, 'WITHSCORES')
local found = {#part == 2 * LOOKS and {part[#part], part[#part - 1]} or {}}
for i = 1, #part, 2 do
  if ask.before_ms and tonumber(part[i + 1]) >= tonumber(ask.before_ms) then
    found[1] = {}
    break
  end
  local account, server, status, name, size_mb =
    unpack(redis.call('HMGET', 'snapshot:' .. part[i], 'account', 'server', 'status', 'name', 'size_mb'))
  local is_mine = account == ask.account and server == (ask.server or server)
  if is_mine and (not ask.status or status == ask.status) and (not ask.name or name == ask.name) then
    found[#found + 1] = {part[i], name or '', string.format('%.0f', number(size_mb) or -1)}
  end
end
return found
