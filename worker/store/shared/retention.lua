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

-- Retire the oldest of those snapshots until `left` are left. Protected ones stay.
local function retire_oldest(made, left, node)
  local over = #made - left
  for _, one in ipairs(made) do
    if over > 0 and one.snapshot.protected ~= '1' then
      retire_snapshot(one.id, one.snapshot, node, now_ms())
      chronicle(one.id, 'rotated', nil, {schedule = one.snapshot.schedule})
      over = over - 1
    end
  end
end
