-- One page of the audit, newest first. ARGV[1]: JSON {match{field: value}, from, to: ids of the stream, limit}.
-- Answers {id to go on before or '', {id, {field, value, ...}}, ...}.
local ask = cjson.decode(ARGV[1])
local looked, page, to = 0, {''}, ask.to

local function matches(flat)
  local entry = {}
  for i = 1, #flat, 2 do entry[flat[i]] = flat[i + 1] end
  for field, value in pairs(ask.match) do
    if entry[field] ~= value then return false end
  end
  return true
end

local LOOKS = 2000 -- entries that one call looks at: a bound on how long it holds Redis

while looked < LOOKS do
  local found = redis.call('XREVRANGE', 'audit', to, ask.from, 'COUNT', 500)
  for _, entry in ipairs(found) do
    looked, to = looked + 1, '(' .. entry[1]
    page[1] = entry[1]
    if matches(entry[2]) then page[#page + 1] = entry end
    if #page > ask.limit then return page end
  end
  if #found < 500 then
    page[1] = ''
    return page
  end
end
return page
