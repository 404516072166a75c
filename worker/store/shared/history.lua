-- include: clock, bounds
-- The history of each snapshot for operators: what happened and who did it. It outlives the snapshot's record.

local HISTORY_MOST = 30 -- entries: the first one and the latest
local HISTORY_KEPT_MS = 30 * 86400 * 1000 -- after the end of the record: as long as jobs are kept
local HISTORIES_DROPPED_AT_ONCE = 20

-- Add an entry. by: the calling token, {token, token_name}, or nil. about: {request, job, schedule, ...}, or nil.
local function chronicle(id, what, by, about)
  local entry, key = about or {}, 'snapshot:' .. id .. ':history'
  entry.what, entry.ms = what, now_text()
  for field, text in pairs(by or {}) do entry[field] = text end
  if redis.call('RPUSH', key, cjson.encode(entry)) <= HISTORY_MOST then return end
  local second = redis.call('LINDEX', key, 1)
  if second then redis.call('LREM', key, 1, second) end
end

-- Called before the record is deleted: keep its history and its main fields for a while.
local function close_history(id, snapshot)
  local key, deleted = 'snapshot:' .. id .. ':history', 'account:' .. snapshot.account .. ':snapshots:deleted'
  chronicle(id, 'forgotten', nil, {
    server = snapshot.server, account = snapshot.account, name = snapshot.name, created_ms = snapshot.created_ms,
  })
  redis.call('PEXPIRE', key, HISTORY_KEPT_MS)
  redis.call('ZADD', deleted, now_ms(), id)
  redis.call('PEXPIRE', deleted, HISTORY_KEPT_MS)
  local over = redis.call('ZCARD', deleted) - history_bound('deleted_snapshots_per_account')
  if over <= 0 then return end
  for _, old in ipairs(redis.call('ZRANGE', deleted, 0, math.min(over, HISTORIES_DROPPED_AT_ONCE) - 1)) do
    redis.call('DEL', 'snapshot:' .. old .. ':history')
    redis.call('ZREM', deleted, old)
  end
end
