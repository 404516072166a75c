-- include: records, states
-- The limits that operators set for an account.

-- How many snapshots a server of the account may have. If the record is unreadable, the default applies.
local function snapshots_max(account)
  local limits = look_up('account:' .. account)
  return limits and number(limits.snapshots_max) or SNAPSHOTS_PER_SERVER
end
