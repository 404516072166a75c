-- include: records
-- The fields of a snapshot that only a backup has: `snapshot:<id>:restored`, until the node publishes the snapshot.

local RESTORED_MS = 30 * 86400000
local RESTORED_FIELDS = {'description', 'labels', 'protected', 'expires_ms', 'schedule'}

-- made_ms: when that backup was made. Fields of a later backup are kept.
local function keep_restored(id, kept, made_ms)
  local key = 'snapshot:' .. id .. ':restored'
  if (number(redis.call('HGET', key, 'made_ms')) or 0) > made_ms then return end
  kept.status, kept.made_ms = nil, string.format('%.0f', made_ms)
  redis.call('DEL', key)
  write(key, kept)
  redis.call('PEXPIRE', key, RESTORED_MS)
end

-- Add the backup's fields to a snapshot that is about to be published.
local function take_restored(id, snapshot)
  local key = 'snapshot:' .. id .. ':restored'
  local kept = redis.call('TYPE', key).ok == 'hash' and named(redis.call('HGETALL', key)) or {}
  redis.call('DEL', key)
  if kept.server ~= snapshot.server or kept.account ~= snapshot.account then return end
  if not number(kept.expires_ms) then kept.expires_ms = nil end -- '': its owner has removed the expiry
  for _, field in ipairs(RESTORED_FIELDS) do snapshot[field] = kept[field] or snapshot[field] end
end

-- The same for a snapshot that was already published. Existing fields are not changed. Answers 1 if something was
-- added.
local function add_restored(id, kept)
  local key = 'snapshot:' .. id
  local snapshot = read(key)
  if kept.server ~= snapshot.server or kept.account ~= snapshot.account then return 0 end
  local added = 0
  for _, field in ipairs(RESTORED_FIELDS) do
    if kept[field] and field ~= 'expires_ms' and redis.call('HSETNX', key, field, kept[field]) == 1 then added = 1 end
  end
  if kept.expires_ms and redis.call('HSETNX', key, 'expires_ms', kept.expires_ms) == 1 then
    redis.call('ZADD', 'snapshots:expiring', kept.expires_ms, id)
    added = 1
  end
  return added
end
