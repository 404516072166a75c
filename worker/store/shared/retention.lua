-- include: clock, records, snapshots, history
-- Retention of scheduled snapshots.

-- A server's completed snapshots made by this schedule (nil: by any), oldest first.
local function scheduled_snapshots(server_id, schedule_id)
  local made = {}
  for _, id in ipairs(redis.call('ZRANGE', 'server:' .. server_id .. ':snapshots', 0, -1)) do
    local snapshot = look_up('snapshot:' .. id)
    local is_here = snapshot and snapshot.server == server_id and snapshot.status == 'completed'
    if is_here and snapshot.schedule and snapshot.schedule == (schedule_id or snapshot.schedule) then
      made[#made + 1] = {id = id, snapshot = snapshot}
    end
  end
  return made
end

local function retire_scheduled(one, node)
  retire_snapshot(one.id, one.snapshot, node, now_ms())
  chronicle(one.id, 'rotated', nil, {schedule = one.snapshot.schedule})
end

-- Retire the oldest `many` of those snapshots that are not protected.
local function make_room(made, many, node)
  for _, one in ipairs(made) do
    if many > 0 and one.snapshot.protected ~= '1' then
      retire_scheduled(one, node)
      many = many - 1
    end
  end
end

-- Retire those snapshots except the newest `keep`. Protected ones stay; no newer one is retired instead.
local function rotate(made, keep, node)
  for i = 1, #made - keep do
    if made[i].snapshot.protected ~= '1' then retire_scheduled(made[i], node) end
  end
end
