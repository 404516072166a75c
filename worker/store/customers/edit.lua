-- include: records, show, shown, history, room
-- Change the customer's fields of a snapshot.
-- Also when full.
-- ask: {account, id, fields: {field: text}, request_id, by: the calling token (see `chronicle`), or nil};
-- expires_ms '': never
-- Answers the snapshot (see `show_snapshot`) or {'refused', code}; nil if the account has no such snapshot.
local ask = cjson.decode(ARGV[1])
local snapshot = read_of(ask.account, 'snapshot:' .. ask.id)
if not snapshot or snapshot.status == 'deleting' then return nil end
local refused = refuse_growth(snapshot, ask.fields)
if refused then return refused end
local edited = {}
for field, text in pairs(snapshot) do edited[field] = text end
for field, text in pairs(ask.fields) do edited[field] = text end
demand_brief('snapshot:' .. ask.id, edited)
demand_whole('snapshot:' .. ask.id, edited)
if next(ask.fields) then write('snapshot:' .. ask.id, ask.fields) end
if ask.fields.expires_ms == '' then redis.call('ZREM', 'snapshots:expiring', ask.id) end
if (ask.fields.expires_ms or '') ~= '' then redis.call('ZADD', 'snapshots:expiring', ask.fields.expires_ms, ask.id) end
for _, field in ipairs({'protected', 'expires_ms'}) do
  local now = ask.fields[field]
  if now and now ~= (snapshot[field] or '') then
    local what = field == 'expires_ms' and 'expiry_set' or now == '1' and 'protected' or 'unprotected'
    chronicle(ask.id, what, ask.by, {request = ask.request_id, expires_ms = field == 'expires_ms' and now or nil})
  end
end
return show_snapshot(ask.id)
