-- include: records, show
-- One page of an account's snapshots.
-- Only reads.
-- ask: {account, server, status, name, from_ms, before_ms, sort, offset, limit}; server, status, name, from_ms and
-- before_ms may be missing; sort is a field, with '-' in front for descending order
-- Answers {total, snapshot (see `show_snapshot`), ...}.
local ask = cjson.decode(ARGV[1])
local index = 'account:' .. ask.account .. ':snapshots'
if ask.server then
  index = 'server:' .. ask.server .. ':snapshots'
  -- another account's server looks like one without snapshots
  if redis.call('HGET', 'server:' .. ask.server, 'account') ~= ask.account then return {0} end
end

-- Whether an entry of the list is the account's: a list that is wrong shows nobody's data to another.
local function is_mine(id)
  local account, server = unpack(redis.call('HMGET', 'snapshot:' .. id, 'account', 'server'))
  return account == ask.account and server == (ask.server or server)
end

local from, before = ask.from_ms or '-inf', ask.before_ms and '(' .. ask.before_ms or '+inf'
local descending, field = string.match(ask.sort, '^(-?)(.+)$')
descending = descending == '-'
local total, ids

if field == 'created_at' and not ask.status and not ask.name then
  total = redis.call('ZCOUNT', index, from, before)
  if descending then
    ids = redis.call('ZREVRANGEBYSCORE', index, before, from, 'LIMIT', ask.offset, ask.limit)
  else
    ids = redis.call('ZRANGEBYSCORE', index, from, before, 'LIMIT', ask.offset, ask.limit)
  end
else -- reads all of the account: 5 for each of its servers, and failed ones
  local found = {}
  for i, id in ipairs(redis.call('ZRANGEBYSCORE', index, from, before)) do
    local status, name, size_mb = unpack(redis.call('HMGET', 'snapshot:' .. id, 'status', 'name', 'size_mb'))
    if is_mine(id) and (not ask.status or status == ask.status) and (not ask.name or name == ask.name) then
      local key = ({created_at = i, name = name or '', size_mb = number(size_mb) or -1})[field]
      found[#found + 1] = {id = id, key = key, place = i}
    end
  end
  table.sort(found, function(one, other)
    if descending then one, other = other, one end
    if one.key == other.key then return one.place < other.place end
    return one.key < other.key
  end)
  total, ids = #found, {}
  for i = ask.offset + 1, math.min(ask.offset + ask.limit, #found) do ids[#ids + 1] = found[i].id end
end

local page = {total}
for _, id in ipairs(ids) do page[#page + 1] = show_listed(index, 'snapshot:', id, ask, show_snapshot) end
return page
